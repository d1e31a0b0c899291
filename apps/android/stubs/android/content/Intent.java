package android.content;

public class Intent {
    public static final String ACTION_OPEN_DOCUMENT_TREE = "android.intent.action.OPEN_DOCUMENT_TREE";
    public Intent(String action) {}
    public String getStringExtra(String name) { throw new RuntimeException(); }
    public android.net.Uri getData() { throw new RuntimeException(); }
}
