"""Here models are trained and audited."""

from tests.audited import unhurried_audits

__all__ = ["unhurried_audits"]
