package android.view;

public abstract class ViewGroup extends View {
    public static class LayoutParams {
        public static final int MATCH_PARENT = -1;
        public static final int WRAP_CONTENT = -2;
        public LayoutParams(int width, int height) {}
    }
    public static class MarginLayoutParams extends LayoutParams {
        public MarginLayoutParams(int width, int height) { super(width, height); }
        public void setMargins(int left, int top, int right, int bottom) { throw new RuntimeException(); }
    }
    public ViewGroup(android.content.Context context) { super(context); }
    public void addView(View view) { throw new RuntimeException(); }
    public void addView(View view, LayoutParams parameters) { throw new RuntimeException(); }
    public void removeAllViews() { throw new RuntimeException(); }
    public void removeViewAt(int index) { throw new RuntimeException(); }
    public int getChildCount() { throw new RuntimeException(); }
    public View getChildAt(int index) { throw new RuntimeException(); }
}
