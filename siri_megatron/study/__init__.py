"""A study: arms x seeds of real runs, compared by rules that stood before the data (`siri study`, docs/study/).

    plan        what is run, from YAML, with its fingerprint        schedule    which run is next
    lane        one core: an engine that stays warm, a run at a time   runner   all lanes, until the plan is done
    collect     what the runs wrote, as two tables             command     `siri study`
    data        the tables, read again and checked             intervals   bootstrap, t, Holm, power
    analysis    the questions and the rules that decide them
    tables, curves, pictures, reading                          results.md and its pictures
"""
