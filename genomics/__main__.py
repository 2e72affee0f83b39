"""python -m genomics fit | validate | test | predict"""

import sys

from core.jobs import front


def main() -> int:
    return front.main("genomics", "Models of long DNA and protein sequences.")


if __name__ == "__main__":
    sys.exit(main())
