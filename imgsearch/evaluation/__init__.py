"""How well does search find what it should: protocols, rankings, figures, statistics.

``protocols`` brings a collection and a dataset together; ``ranking`` and
``relevance`` say what comes where and what counts; ``scoring`` makes an
:class:`~imgsearch.evaluation.scoring.Evaluation` of both, with ``statistics``;
``comparison`` sets two against each other; ``results``, ``trec`` and ``figures``
write them down.
"""
