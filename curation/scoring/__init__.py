"""Scoring a corpus of any size: units of work inside files, datatrove blocks, and where they run.

    corpus   which documents of which files
    units    the plan: at most `UNIT_DOCUMENTS` documents of one file each, named by their content
    blocks   datatrove steps: `ReadUnits` yields the documents of a task's units, `ScoreBlock` scores them
    parts    one small score table for each unit, whole or absent
    runners  local processes, Ray or Slurm; lost workers are noticed, and their units done again
    guard    what an unfinished scoring was about, so that another one is not mistaken for it

`curation.score_tables.score_files` puts them together.
"""
