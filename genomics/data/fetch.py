"""Real sequence data: ``python -m genomics.data.fetch NAME...``."""

from __future__ import annotations

import sys
from pathlib import Path

from core.jobs import fetching
from core.jobs.fetching import Dataset

_VT = "usr/share/doc/vt/examples"
_HISAT = "usr/share/doc/hisat2/examples/reference"
_GENBANK = "usr/share/doc/python-biopython-doc/Tests/GenBank"
_DM3 = "usr/lib/R/site-library/Biostrings/extdata"

DATASETS = {
    "human-chr20": Dataset(
        "vt-examples",
        "human chromosome 20, hg19, 63 Mb, named 20",
        {
            f"{_VT}/ref/20.fa.gz": (
                "83c80b3fb23822ff0a66f26306e46f5db3c83d48fcff68bcddc353a3d8ef581b"
            )
        },
    ),
    "chr20-indels": Dataset(
        "vt-examples",
        "194 insertions and deletions on chromosome 20, as called and normalised by vt",
        {
            f"{_VT}/normalize/01_IN.vcf.gz": (
                "8c8278a4d6ab4ace8d07cb7eed6c5293729ffb5822c4fe4122e5a96ddd84daf7"
            ),
            f"{_VT}/normalize/01_OUT.vcf.gz": (
                "35864e728420b55ec398b9a339105ee040bb3fa95ab055e500d24cd405fc4781"
            ),
        },
    ),
    "fly-promoters": Dataset(
        "r-bioc-biostrings",
        "2,000 bases upstream of 26,454 transcripts of the fly, dm3",
        {
            f"{_DM3}/dm3_upstream2000.fa.gz": (
                "78076ae22e0084cfb4d6775b000ed9d8fadcefe2469aacce76b78f5a427a08f4"
            )
        },
    ),
    "chloroplast": Dataset(
        "python-biopython-doc",
        "chloroplast of Arabidopsis thaliana, 154 kb with its features, GenBank",
        {
            f"{_GENBANK}/NC_000932.gb.gz": (
                "db062285e2e4c9d40427b9c8199b1fda9e8ec194fb80ec02ea73705b8627383f"
            )
        },
    ),
    "human-chr22-1mb": Dataset(
        "hisat2",
        "human chr22:20000001-21000000, hg19, and 3,502 small variants on it",
        {
            f"{_HISAT}/22_20-21M.fa": (
                "5f20f32cf4233e45f91ad3ca2e7928a8b6594040522fe4275b876856c1d9944d"
            ),
            f"{_HISAT}/22_20-21M.snp": (
                "b7cc1336b2101775188641c369b05e9072883ccc832b703e9d39da513817792a"
            ),
        },
    ),
}


def fetch(name: str) -> dict[str, Path]:
    """``core.jobs.fetching.fetch`` of one of ``DATASETS``."""
    return fetching.fetch(name, DATASETS)


if __name__ == "__main__":
    sys.exit(fetching.main(sys.argv[1:], DATASETS))
