"""Classifiers of one's own: trained from an annotated table, measured on held-out labels, used as any scorer."""

from curation.classifiers.annotated import Annotated, distilled, read_annotated
from curation.classifiers.fasttext_training import FastTextSettings, train_fasttext
from curation.classifiers.folder import open_classifier
from curation.classifiers.language import LanguageRule, LanguageScorer, language_scores, passing_language
from curation.classifiers.record import read_classifier
from curation.classifiers.regression import RegressionSettings, train_regression

__all__ = [
    "Annotated",
    "FastTextSettings",
    "LanguageRule",
    "LanguageScorer",
    "RegressionSettings",
    "distilled",
    "language_scores",
    "open_classifier",
    "passing_language",
    "read_annotated",
    "read_classifier",
    "train_fasttext",
    "train_regression",
]
