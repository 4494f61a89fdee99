"""Names and texts that are taken where none is given, apart from what uses them: help shows them without that."""

CATALOGUE_FOLDER = "catalogue"
DEFAULT_STEPS = "src/nemotron/steps"
JOBS_FOLDER = "jobs"
OVERLAYS_FOLDER = "airgap-overlays"
PLAN_CONFIG = "airgap.yaml"
SITE_FILE = "site.yaml"
PERSISTENT_ASSETS_POLICY = "models, datasets, checkpoints and customer data stay on storage that the executor sees"
