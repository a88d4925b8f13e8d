"""The vocabulary that gateway, reviewer and notifier share. It imports none of them."""
