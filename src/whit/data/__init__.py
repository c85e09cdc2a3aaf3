"""Rows: reading, checking, splitting, and turning them into prompts.

Used by every other part of whit and uses none of them but `whit.errors` and `whit.files`. Importing it is
instant: jinja2, numpy, datasketch, pyarrow and datasets are imported where they are first needed.
"""

from whit.data.checking import Problem, check_rows
from whit.data.fixing import fix_rows, write_rows
from whit.data.rows import Reading, Row, Turn, read, read_rows
from whit.data.splitting import Split, split_rows
from whit.data.templates import Encoded, Template, encode_rows

__all__ = [
    "Encoded",
    "Problem",
    "Reading",
    "Row",
    "Split",
    "Template",
    "Turn",
    "check_rows",
    "encode_rows",
    "fix_rows",
    "read",
    "read_rows",
    "split_rows",
    "write_rows",
]
