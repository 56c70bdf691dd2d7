"""Deploy: merge for inference, export to a runtime, and check there that the export still says the same."""

from metamixer.deploy.export import export, export_command
from metamixer.deploy.report import ExportReport

__all__ = ["ExportReport", "export", "export_command"]
