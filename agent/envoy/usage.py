"""An Envoy filter that reads the token usage of responses, so that the access log has it: the agent sees no body.

The filter is a Lua script. It lets each chunk of a body pass at once, keeps its first and its last kilobytes, and looks
for the numbers in them when the body is over. Envoy's own filters for this have limits that a model server or a client
could reach: in Envoy 1.40 `sse_to_metadata` ends the process on an event that is a scalar, such as `data: 0`, and
`json_to_metadata` keeps a whole response and answers 500 for one that exceeds the buffer.

A key of an object is followed by a quote, a colon and a number; in the text of an answer a quote is escaped, so text
cannot be taken for a key.
"""

from __future__ import annotations

from typing import Any, Final

from agent.requests.exchange_text import CACHED_TOKENS, COMPLETION_TOKENS, PROMPT_TOKENS, USAGE
from agent.requests.usage_text import CACHED, COMPLETION, HEAD_BYTES, PROMPT, TAIL_BYTES

Data = dict[str, Any]

NAMES: Final = ((PROMPT_TOKENS, PROMPT), (COMPLETION_TOKENS, COMPLETION), (CACHED_TOKENS, CACHED))

_SCRIPT: Final = """\
local NAMES = {%(names)s}
function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type") or ""
  if not (kind:find("^text/event%%-stream") or kind:find("^application/json")) then return end
  if (headers:get("content-encoding") or "identity") ~= "identity" then return end
  local head, before, parts, size = "", "", {}, 0
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      if #head < %(head)d then head = head .. chunk:getBytes(0, math.min(length, %(head)d - #head)) end
      local take = math.min(length, %(tail)d)
      parts[#parts + 1] = chunk:getBytes(length - take, take)
      size = size + take
      if size >= %(tail)d then before, parts, size = table.concat(parts), {}, 0 end
    end
  end
  local text = head .. "|" .. before .. table.concat(parts)
  local metadata = handle:streamInfo():dynamicMetadata()
  for key, names in pairs(NAMES) do
    for _, name in ipairs(names) do
      local last = nil
      for digits in text:gmatch('"' .. name .. '"%%s*:%%s*(%%d+)%%s*[,}]') do last = digits end
      if last then metadata:set("%(namespace)s", key, tonumber(last)) end
    end
  end
end
"""


def usage_script() -> str:
    """The script in Lua."""
    names = ", ".join(f"{key} = {{{', '.join(map(_quoted, each))}}}" for key, each in NAMES)
    return _SCRIPT % {"names": names, "head": HEAD_BYTES, "tail": TAIL_BYTES, "namespace": USAGE}


def usage_filter() -> Data:
    """The HTTP filter. It is to be the first of the list, so that it is the last one that a response passes."""
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    source = {"inline_string": usage_script()}
    return {"name": "envoy.filters.http.lua", "typed_config": {"@type": kind, "default_source_code": source}}


def _quoted(name: str) -> str:
    return f'"{name}"'
