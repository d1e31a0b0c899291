package android.view;

public final class WindowInsets {
    public int getSystemWindowInsetTop() { throw new RuntimeException(); }
    public int getSystemWindowInsetBottom() { throw new RuntimeException(); }
}
