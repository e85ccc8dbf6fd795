"""The study of internal policies on the bundled models: `python -m benchmarks.study`, then `python -m benchmarks.study.page`."""
