"""What the fuzzer sends where the OpenAPI document names a format of ours."""

import schemathesis
from hypothesis import strategies

for name, examples in (
    ("cursor", ("1", "20")),
    ("rate", ("100/min", "5/s", "1000/2h")),
    ("time-zone", ("UTC", "Europe/Rome")),
    ("trigger", ("0 2 * * *", "@daily", "@every 5m")),
):
    schemathesis.openapi.format(name, strategies.sampled_from(examples))
