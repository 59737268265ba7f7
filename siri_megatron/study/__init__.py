"""A study: arms x seeds of real runs, compared by rules that stood before the data (`siri study`, docs/study/).

    plan        what is run, from YAML, with its fingerprint        schedule    which run is next
    lane        one core: an engine that stays warm, a run at a time   runner   all lanes, until the plan is done
    collect     what the runs wrote, as two tables                  command     `siri study`
"""
