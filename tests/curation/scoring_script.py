"""A scoring of a small corpus that the reliability tests kill: arguments are the corpus, the scores and settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from curation.errors import MixwrightError
from curation.progress import set_progress_mode
from curation.score_tables import score_files
from curation.scoring.corpus import corpus_of
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner
from tests.curation.fakes import Length


def main(documents: str, scores: str, settings: str) -> int:
    set_progress_mode("quiet")
    given = json.loads(settings)
    scorers = [Length(seconds=given.get("seconds", 0.0), name=name) for name in ("length", "second")]
    limit = given.get("file_size")
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        execution = Execution(workers=given.get("workers", 0), tasks=given.get("tasks"), retries=2)
        with open_runner(execution) as runner:
            for scorer in scorers:
                folder = Path(scores)
                score_files(corpus_of("s", documents), scorer, folder, runner=runner, unit_documents=10)
    except MixwrightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
