"""Studies and documents -> what became of each, durably: the truth about every draft.

Nothing here knows DICOM, networks or models. States and events are in the clear and hold no PHI;
what identifies a patient is hashed with the site's key where it is looked up, and sealed with it
where it must come back.
"""
