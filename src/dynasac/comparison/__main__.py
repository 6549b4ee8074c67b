"""One training of a comparison, in a process of its own: `python -m dynasac.comparison JOB`."""

import json
import sys

from ..errors import UsageError
from ..processes import end_with_parent
from .agents import Job, train

if __name__ == "__main__":
    end_with_parent()
    try:
        train(Job(**json.loads(sys.argv[1])))
    except UsageError as error:
        sys.exit(str(error))
