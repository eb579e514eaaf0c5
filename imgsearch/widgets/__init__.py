"""The notebooks' panels. They show and ask; what is done, other rooms do.

Each panel is an ipywidget: the last line of a cell shows it. Work that takes
longer than a blink runs in a thread, and everything that goes wrong is said in
the panel, in words.
"""

from imgsearch.widgets.admin import AdminPanel
from imgsearch.widgets.evaluation import EvaluationPanel
from imgsearch.widgets.ingest import IngestPanel
from imgsearch.widgets.search import SearchPanel

__all__ = ["AdminPanel", "EvaluationPanel", "IngestPanel", "SearchPanel"]
