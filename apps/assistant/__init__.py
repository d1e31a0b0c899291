"""The offline assistant: one Kivy app for desktop, Android and iOS over phi3mobile's Session.

store, settings, worker, state, bundles, meters and text know no window and are tested without one; ui draws them.
"""
