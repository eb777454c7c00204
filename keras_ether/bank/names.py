"""Names of the inputs of a bank's model."""

ADAPTER_ID = "adapter_id"
INPUTS = "inputs"
