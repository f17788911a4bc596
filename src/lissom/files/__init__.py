"""The one place that opens untrusted files and writes artifact folders.

Reading: a file is accepted or refused by what it holds, before anything is allocated for it, and nothing is ever
unpickled. Writing: an output path holds nothing, the old artifact or the complete new one, whenever the process dies.

Links. A name that a *user* typed may lead through links: it is the user's choice. A name that stands in a *file* may
not (`inside`): a downloaded folder must not be able to reach other files of its reader. Two layouts use links for good
reasons and stay open: a hub snapshot, whose links lead into the `blobs` folder of the same repository; and packages
that installers hard-link, whose files the library asks for by fixed names (`hard_links=True`).
"""

from lissom.files.reading import (
    check_safetensors,
    compare_digests,
    digest,
    digests,
    inside,
    open_file,
    read_json,
    read_safetensors,
    refuse_pickle,
)
from lissom.files.sentence import Sentence, read_sentence, write_sentence
from lissom.files.writing import check_new_folder, new_folder, recover, write_json, write_text

__all__ = [
    "Sentence",
    "check_new_folder",
    "check_safetensors",
    "compare_digests",
    "digest",
    "digests",
    "inside",
    "new_folder",
    "open_file",
    "read_json",
    "read_safetensors",
    "read_sentence",
    "recover",
    "refuse_pickle",
    "write_json",
    "write_sentence",
    "write_text",
]
