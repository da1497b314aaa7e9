"""The batching engine: `scheduler` decides, `runner` computes, `core` ties them into one `step()`."""
