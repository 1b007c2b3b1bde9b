"""Every silent bug of the study, made again, beside its healthy twin: `make zoo`."""
