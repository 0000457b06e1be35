"""What users can cause, as errors that say what, where and what to try.

    MlaMedError
    |- StudyError        a folder or a study that cannot be read
    |- SeriesError       a series whose geometry or pixels cannot be trusted
    |- ReportError       a text that does not parse, findings that no report can state
    |- CheckpointError   a checkpoint that is missing, damaged or of another kind
    |- ConfigError       a configuration file or option
    |- OutputError       a result that could not be written
    |- LedgerError       a state, key or database that does not allow what was asked
    |- PacsError         a peer that cannot be reached, or an answer that cannot be trusted

Caught once, in the CLI (one line, exit code 1) and once in the flow (quarantine, go on).
The reason code is what a ledger keeps and a script compares; the words are for people.
"""


class MlaMedError(Exception):
    """A message of one line, with a reason code in SCREAMING_SNAKE_CASE."""

    code = "ERROR"

    def __init__(self, message: str, *, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class StudyError(MlaMedError):
    code = "STUDY_UNREADABLE"


class SeriesError(MlaMedError):
    code = "SERIES_UNREADABLE"


class ReportError(MlaMedError):
    code = "REPORT_INVALID"


class CheckpointError(MlaMedError):
    code = "CHECKPOINT_INVALID"


class ConfigError(MlaMedError):
    code = "CONFIG_INVALID"


class OutputError(MlaMedError):
    code = "OUTPUT_NOT_WRITTEN"


class LedgerError(MlaMedError):
    code = "LEDGER_REFUSED"


class PacsError(MlaMedError):
    code = "PACS_FAILED"
