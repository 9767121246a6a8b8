"""What the keeper of a store does with finished runs: count, clean up, repack, copy and import them.

None of it changes anything that was committed to: state digests, leaves, trees and signed roots stay byte for byte.
"""
