"""PACS -> complete studies here; committed documents -> instances there, read back.

Knows DICOMweb and DIMSE as a client: nothing here listens on a port.
"""
