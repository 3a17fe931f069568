"""Who sends a request, and whether it may: delegated authentication and authorisation as Kubernetes API servers do it.

    certificate, headers --> identity: front proxy, else client certificate, else a bearer token
    bearer token ----------> token file, or TokenReview by the API server
    identity + path -------> SubjectAccessReview by the API server

Pure: `identity`, `certificates`, `trust`, `token_file`, `reviews`, `expiring_cache`. The shell asks the API server and
reads files. Nothing here knows HTTP servers; `agent.serve.http.access` is the adapter.
"""
