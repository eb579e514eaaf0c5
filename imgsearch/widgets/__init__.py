"""The notebooks' panels. They ask and show; other modules do the work.

Each panel is an ipywidget, displayed as the last line of a cell. Work that takes time runs in a
background thread, and the panel describes every error in words.
"""

from imgsearch.widgets.admin import AdminPanel
from imgsearch.widgets.evaluation import EvaluationPanel
from imgsearch.widgets.ingest import IngestPanel
from imgsearch.widgets.search import SearchPanel

__all__ = ["AdminPanel", "EvaluationPanel", "IngestPanel", "SearchPanel"]
