# SPDX-License-Identifier: Apache-2.0
"""Reports: one HTML file about runs, with a page to review suspicious labels."""
