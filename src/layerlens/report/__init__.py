"""Runs and training folders to one self-contained interactive page."""

from layerlens.report.report import ReportOptions, report_data, report_html, write_report

__all__ = ["ReportOptions", "report_data", "report_html", "write_report"]
