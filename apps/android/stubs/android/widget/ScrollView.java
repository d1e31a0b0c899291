package android.widget;

public class ScrollView extends FrameLayout {
    public ScrollView(android.content.Context context) { super(context); }
    public boolean fullScroll(int direction) { throw new RuntimeException(); }
    public void setFillViewport(boolean fill) { throw new RuntimeException(); }
}
