package android.view;

public class View {
    public static final int VISIBLE = 0;
    public static final int GONE = 8;
    public static final int ACCESSIBILITY_LIVE_REGION_POLITE = 1;
    public interface OnClickListener {
        void onClick(View view);
    }
    public interface OnApplyWindowInsetsListener {
        WindowInsets onApplyWindowInsets(View view, WindowInsets insets);
    }
    public View(android.content.Context context) {}
    public void setOnClickListener(OnClickListener listener) { throw new RuntimeException(); }
    public void setOnApplyWindowInsetsListener(OnApplyWindowInsetsListener listener) { throw new RuntimeException(); }
    public void setPadding(int left, int top, int right, int bottom) { throw new RuntimeException(); }
    public void setVisibility(int visibility) { throw new RuntimeException(); }
    public void setEnabled(boolean enabled) { throw new RuntimeException(); }
    public void setMinimumHeight(int pixels) { throw new RuntimeException(); }
    public void setContentDescription(CharSequence text) { throw new RuntimeException(); }
    public void setAccessibilityLiveRegion(int mode) { throw new RuntimeException(); }
    public void setAccessibilityHeading(boolean heading) { throw new RuntimeException(); }
    public void announceForAccessibility(CharSequence text) { throw new RuntimeException(); }
    public void setBackgroundColor(int color) { throw new RuntimeException(); }
    public void setBackgroundResource(int id) { throw new RuntimeException(); }
    public final int getHeight() { throw new RuntimeException(); }
    public void scrollTo(int x, int y) { throw new RuntimeException(); }
    public boolean post(Runnable work) { throw new RuntimeException(); }
    public boolean requestFocus() { throw new RuntimeException(); }
    public void setLayoutParams(ViewGroup.LayoutParams parameters) { throw new RuntimeException(); }
}
