"""The catalogue's rows of what servers tell beside their load: the queue by reason, the cache's size, adapters that
wait, whether the model is loaded; `exporters.catalog` holds all rows."""

from __future__ import annotations

from typing import Final

from exporters.metric import Metric, Rows

ROWS: Final = Rows()


def _endpoint(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool endpoint", help)


WAITING_CAPACITY: Final = _endpoint(
    "igw_endpoint_waiting_for_capacity_requests",
    "requests",
    "Those of the waiting requests that wait for room in the batch or the cache",
)
WAITING_DEFERRED: Final = _endpoint(
    "igw_endpoint_waiting_deferred_requests",
    "requests",
    "Those of the waiting requests that wait for something else, such as a LoRA slot",
)
SLOTS_USAGE: Final = _endpoint(
    "igw_endpoint_slots_usage_ratio", "ratio", "Part of the places in the endpoint's running batch that are taken"
)
LORA_WAITING: Final = _endpoint(
    "igw_endpoint_lora_waiting_adapters", "adapters", "Different LoRA adapters among the waiting requests"
)
BLOCKS: Final = _endpoint("igw_endpoint_kv_blocks", "blocks", "Blocks of the endpoint's KV cache")
BLOCK_SIZE: Final = _endpoint("igw_endpoint_block_size_tokens", "tokens", "Tokens in one block of that cache")
MODEL_LOADED: Final = _endpoint(
    "igw_endpoint_model_loaded",
    "boolean",
    "1 while the endpoint's model is loaded and can serve, 0 while it sleeps; absent where servers do not tell",
)
