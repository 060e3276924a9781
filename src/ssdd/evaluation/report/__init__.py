"""A comparison as one HTML file: tables, figures, and the crops that went worst and best."""

from .document import render_report, write_report

__all__ = ["render_report", "write_report"]
