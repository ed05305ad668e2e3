"""Every kind of tampering is named, and a good output is called good.

`write_output` writes the format of an output with nothing but pyarrow and json: it is the format's golden example.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import batched
from pathlib import Path
from typing import Any, get_args

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bottleneck import rows, spec, verify
from bottleneck.errors import StoreError, UsageError
from tests import oracle
