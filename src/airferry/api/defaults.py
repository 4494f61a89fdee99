"""Names that are taken where none is given, apart from what uses them, so that help is shown without loading that."""

SITE_FILE = "site.yaml"
DEFAULT_STEPS = "src/nemotron/steps"
