"""What a run tells: metrics, events, stage times, the live display and the tables at the end. Readers need no model."""
