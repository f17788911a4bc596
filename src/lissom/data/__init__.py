"""Data sets and tasks as plain rows: what a person has, checked and brought to one form."""

from lissom.data.demo import demo_data, demo_model_folder
from lissom.data.encode import encode
from lissom.data.load import load_data
from lissom.data.task import Data, Kind, Task

__all__ = ["Data", "Kind", "Task", "demo_data", "demo_model_folder", "encode", "load_data"]
