"""Names of files and folders where none is given, apart from what uses them: help shows them without loading that."""

CATALOGUE_FOLDER = "catalogue"
DEFAULT_STEPS = "src/nemotron/steps"
OVERLAYS_FOLDER = "airgap-overlays"
SITE_FILE = "site.yaml"
