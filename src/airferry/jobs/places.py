"""Names of the folders that commands of the far side write, apart from what uses them: help needs them too."""

CATALOGUE_FOLDER = "catalogue"
OVERLAYS_FOLDER = "airgap-overlays"
