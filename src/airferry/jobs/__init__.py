"""Jobs on the site: configs, mirrors and the checklist for a loaded bundle."""
