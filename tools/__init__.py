"""Programs around polstore that are not part of the packages."""
