"""What are the model-specific registers about split locks and bus locks called, and what do their bits mean?

Source: SDM volume 4, table 2-2; DEBUGCTL's bit 2 on AMD: APM volume 2, "Bus Lock Trap".
"""

from __future__ import annotations

TEST_CTRL, CORE_CAPABILITIES, DEBUGCTL = 0x33, 0xCF, 0x1D9
DETECT_SPLIT_LOCKS = 1 << 29  #: of TEST_CTRL
HAS_SPLIT_LOCKS = 1 << 5  #: of CORE_CAPABILITIES: TEST_CTRL has that bit
DETECT_BUS_LOCKS = 1 << 2  #: of DEBUGCTL
