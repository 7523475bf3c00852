"""The paper's eight benchmarks, asked by lmms-eval through this plugin."""
