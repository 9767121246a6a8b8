"""Nothing but the folder's own modules on the path: they are imported by name, in the children too."""
