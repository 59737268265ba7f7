"""`siri report`: a run, or several beside each other, as one static page; the plots and tables apart; a Chrome trace.

    read ─► bins, tables, advise, samples, timeline (pure) ─► figures, overlay (Altair) ─► page, plots
                                                   trace ─► trace.json

Imports no torch. What decides is pure; `read`, `rollouts` and `command` touch files.
"""
