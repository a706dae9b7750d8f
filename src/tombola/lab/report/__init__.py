"""From run folders to one page, tables and figures."""
