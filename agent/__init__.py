"""The inference gateway agent: scrapes model servers, keeps their state, picks endpoints, exports what it knows."""
