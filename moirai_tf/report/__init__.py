"""What was decided for a model, why, and how well it held: one page to look at.

Needs the extra `report` (plotly) to draw; what is drawn are values of `content`.
"""

from moirai_tf.report.content import Content, content_of
from moirai_tf.report.page import page_of, write_report

__all__ = ["Content", "content_of", "page_of", "write_report"]
